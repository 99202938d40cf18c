"""A stand-in for an SGLang server: `python -m deploy.sglang_standin --model DIR --port N`, for tests and for people without a GPU."""
