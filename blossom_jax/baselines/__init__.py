"""Models that BlossomRec is compared with: one file each, under the same trainer and evaluation."""
