"""Text models that learn the catalogue's language before they meet its users."""
