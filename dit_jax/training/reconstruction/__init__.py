"""Training a decoder for a frozen encoder: the first stage of RAE (arXiv 2510.11690)."""
