"""Fuzzing of what takes a stranger's bytes: the decoder, the name grammar, the dispatch. See ``__main__``."""
