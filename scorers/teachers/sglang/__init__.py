"""A teacher held by SGLang servers."""
