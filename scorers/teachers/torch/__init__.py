"""A teacher computed in the scorer's own process, over the Hugging Face modelling code."""
