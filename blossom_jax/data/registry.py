"""The data sets known by name: their files, where those come from, and their terms. Data only.

A sha256 is of the uncompressed file. Files without one come from official archives that may be
re-issued; theirs is recorded at the first download.
"""

import dataclasses
from typing import Any

from blossom_jax.data.column_formats import UNNAMED, Columns

MOVIELENS = (
    "GroupLens terms: research use, cite Harper and Konstan 2015; no redistribution without "
    "permission, no commercial use"
)
MOVIELENS_LATER = (
    "GroupLens terms: research use, cite Harper and Konstan 2015; redistribution only under the "
    "same terms, no commercial use"
)
AMAZON = "Amazon reviews (UCSD): no open licence stated; research use, cite McAuley et al. 2015"
GOWALLA = "SNAP loc-gowalla: no licence stated; research use, cite Cho et al. 2011"
YELP = "Yelp Dataset Terms: academic use only, no redistribution"


@dataclasses.dataclass(frozen=True)
class Url:
    """A file on the web.

    Attributes:
      url: Address; where it ends in .gz the file is expanded.
      member: Path inside it, where it is a zip archive.
    """

    url: str
    member: str = ""

    def __str__(self) -> str:
        return self.url


@dataclasses.dataclass(frozen=True)
class Package:
    """A file inside a Python package, which only pip's package index needs to serve."""

    name: str
    version: str
    member: str

    def __str__(self) -> str:
        return f"the Python package {self.name}=={self.version}"


@dataclasses.dataclass(frozen=True)
class File:
    """One log in one format.

    Attributes:
      name: Its name in $BLOSSOM_DATA and in the cache.
      format: One of `formats.FORMATS`.
      sha256: Of the uncompressed file; "" where it is recorded at the first download.
      sources: Where to fetch it, in order.
      columns: Column names, for formats that need them.
      newest_first: True where rows run backwards in time. They are then reversed before the
        stable sort, so that events of the same second keep the order in which they happened.
    """

    name: str
    format: str
    sha256: str = ""
    sources: tuple[Url | Package, ...] = ()
    columns: Columns = UNNAMED
    newest_first: bool = False


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A named data set.

    Attributes:
      files: The same log in alternative files; the first one at hand is used, else the first one
        that can be fetched.
      terms: Terms of use, printed once.
    """

    files: tuple[File, ...]
    terms: str


def _github(repository: str, commit: str, path: str) -> Url:
    return Url(f"https://raw.githubusercontent.com/{repository}/{commit}/{path}")


_SASREC = ("kang205/SASRec", "e3738967fddab206d6eeb4fda433e7a7034dd8b1")
_S3REC = ("RUCAIBox/CIKM2020-S3Rec", "2a81540ae18615d88ef88227b0c066e5b74781e5")
_RECBOLE = ("RUCAIBox/RecBole", "7b02be5ec80a88310f2d04a27a82adfcbb5dc211")
_LATEST_SMALL = (
    "hasstariq/Collaborative-Filltering-",
    "02202ae65f474026d8fedcdd87b4e7c60ef13cc4",
)
_LBSN = ("rahmanidashti/LBSNDatasets", "b55cccad6ad49684705cabeed81472ce03ddb2df")
_ACADEMY = ("rohitpandey13/academy", "7e7919ac6ad5b4c299c7368c05953964820acb8f")
_NYC = "tutorials/geo-located-data/jupyter/notebooks/data/gowalla_events.csv.gz"
_GROUPLENS = "https://files.grouplens.org/datasets/movielens"
_RATINGS_CSV = Columns("userId", "movieId", "timestamp")

# Both hold the same interactions in the same order. The timestamped one comes first because it
# also serves time splits and recent popularity; only the other can be fetched. The official archive
# is no source for them: it has the 290 items with fewer than five events as well.
_ML_1M_TIMES = File(
    "ml-1m.inter",
    "inter",
    "42e5d5f0a0a050a1471e295b0c393acc8f5fde4928cea65e50f508d519acee84",
)
_ML_1M = File(
    "ml-1m.txt",
    "user_item",
    "b725f3acb3986fe3130bffd1e77a74d182a1f51799567a236dbd60270f95b0a2",
    (_github(*_SASREC, "data/ml-1m.txt"),),
)
_ML_100K = File(
    "ml-100k.inter",
    "inter",
    "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    (
        Package("recbole", "1.2.1", "recbole/dataset_example/ml-100k/ml-100k.inter"),
        _github(*_RECBOLE, "dataset/ml-100k/ml-100k.inter"),
    ),
)
_ML_LATEST_SMALL = File(
    "ml-latest-small-ratings.csv",
    "csv",
    "aa289ca83157595d0df6aea1be6a4ded676ddc4385472e8313a8ed9805352646",
    (
        _github(*_LATEST_SMALL, "ml-latest-small/ratings.csv"),
        Url(f"{_GROUPLENS}/ml-latest-small.zip", "ml-latest-small/ratings.csv"),
    ),
    columns=_RATINGS_CSV,
)
_ML_20M = File(
    "ml-20m-ratings.csv",
    "csv",
    sources=(Url(f"{_GROUPLENS}/ml-20m.zip", "ml-20m/ratings.csv"),),
    columns=_RATINGS_CSV,
)
_BEAUTY = File(
    "amazon-beauty-s3rec.txt",
    "user_items",
    "226cce9c3105299ca0db9615d7d3fb32b3175e90da43100ae352599f0f0107b8",
    (_github(*_S3REC, "data/Beauty.txt"),),
)
_SPORTS = File(
    "amazon-sports-s3rec.txt",
    "user_items",
    "2a095e0648872beb9982408958290f5d655db5be2911c3756b5446de9f0b8de2",
    (_github(*_S3REC, "data/Sports_and_Outdoors.txt"),),
)
_TOYS = File(
    "amazon-toys-s3rec.txt",
    "user_items",
    "176c680c688d497598c4a89a03b402c0fe78d795e5db335c2e78dd5f2d778a3f",
    (_github(*_S3REC, "data/Toys_and_Games.txt"),),
)
_VIDEO_GAMES = File(
    "amazon-video-games.txt",
    "user_item",
    "b7376fe24430743f411dc7f567285657b2adb3f74361cc7ba0aee94f3024b651",
    (_github(*_SASREC, "data/Video.txt"),),
)
_YELP = File(
    "yelp-s3rec.txt",
    "user_items",
    "724b219106b81dd2349027da997334ddb6da9fe2f152ad6e0d97a93170f7caed",
    (_github(*_S3REC, "data/Yelp.txt"),),
)
_GOWALLA = File(
    "loc-gowalla_totalCheckins.txt",
    "checkins",
    sources=(Url("https://snap.stanford.edu/data/loc-gowalla_totalCheckins.txt.gz"),),
    newest_first=True,
)
_GOWALLA_1000 = File(
    "gowalla-1000users-checkins.txt",
    "user_item_time",
    "24fd30e965b5f155bf5c291c34382dfc533c8e29c07a373fc21fbc05a989455e",
    (_github(*_LBSN, "Gowalla/Gowalla_3/Gowalla_checkins.txt"),),
    newest_first=True,
)
_GOWALLA_NYC = File(
    "gowalla-nyc-checkins.tsv",
    "checkins",
    "46827820c05bae38bc8674fbeb291104e8cd2f32179afc53b4552c0e388acb9e",
    (_github(*_ACADEMY, _NYC),),
    newest_first=True,
)

# The arguments of synthetic.generate and of synthetic.generate_lengths for the data sets made so.
SYNTHETIC = {"num_users": 2000, "num_items": 1000, "history_length": 128, "seed": 0}
INTERESTS = {"num_users": 6000, "num_items": 200, "history_length": 128, "seed": 0}
LONG_INTEREST: dict[str, Any] = {
    "history_lengths": (128, 256, 512, 1024, 2048, 4096, 8192, 16384),
    "events_of_each": 2**19,
    "num_items": 200,
    "seed": 0,
}

DATASETS: dict[str, Dataset] = {
    "ml_1m": Dataset((_ML_1M_TIMES, _ML_1M), MOVIELENS),
    "ml_100k": Dataset((_ML_100K,), MOVIELENS),
    "ml_20m": Dataset((_ML_20M,), MOVIELENS_LATER),
    "ml_latest_small": Dataset((_ML_LATEST_SMALL,), MOVIELENS_LATER),
    "amazon_beauty": Dataset((_BEAUTY,), AMAZON),
    "amazon_sports": Dataset((_SPORTS,), AMAZON),
    "amazon_toys": Dataset((_TOYS,), AMAZON),
    "amazon_video_games": Dataset((_VIDEO_GAMES,), AMAZON),
    "yelp": Dataset((_YELP,), YELP),
    "gowalla": Dataset((_GOWALLA,), GOWALLA),
    "gowalla_1000": Dataset((_GOWALLA_1000,), GOWALLA),
    "gowalla_nyc": Dataset((_GOWALLA_NYC,), GOWALLA),
}
