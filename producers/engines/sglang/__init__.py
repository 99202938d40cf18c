"""A student sampled by SGLang servers."""
