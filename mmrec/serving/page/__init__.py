"""The page at `/`: recommendations with pictures, search, and a new item's audience."""
