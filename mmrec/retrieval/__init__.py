"""What a trained run is used for: export, recommendation, similar items, new items."""
