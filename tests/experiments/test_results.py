"""The table at the end of a run."""

from experiments import _protocol, _results

MODEL = {"full/ndcg@10": 0.2, "full/recall@50": 0.5, "full/coverage@10": 0.9}
POPULARITY = {"full/ndcg@10": 0.1, "full/recall@50": 0.2, "full/coverage@10": 0.001}


def rows(monkeypatch, chosen_by):
    monkeypatch.setattr(_protocol, "describe", lambda protocol: "protocol")
    shown = _results.table("title", MODEL, POPULARITY, (), (), {"chosen_by": chosen_by})
    return [line.split() for line in shown.splitlines() if "/" in line]


def test_what_chose_the_checkpoint_is_shown_at_any_cutoff(monkeypatch):
    ndcg = ["full/ndcg@10", "0.2000", "0.1000", "2.00"]
    recall = ["full/recall@50", "0.5000", "0.2000", "2.50"]
    coverage = ["full/coverage@10", "0.9000", "0.0010", "-"]
    assert rows(monkeypatch, "validation full/recall@50") == [recall, ndcg, coverage]
    assert rows(monkeypatch, "validation full/ndcg@10") == [ndcg, coverage]
