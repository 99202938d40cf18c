"""The embedded student engine: any Hugging Face causal LM, continuous batching over slots with a KV cache, on CPU or CUDA."""
