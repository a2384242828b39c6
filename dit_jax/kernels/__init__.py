"""Operations that XLA has not, or not fast: a folder each."""
