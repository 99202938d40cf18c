"""Asking SGLang servers over HTTP: what engine and teacher share. No torch here."""
