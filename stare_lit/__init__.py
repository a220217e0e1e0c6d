"""StARe-VLA in Lightning: imitation -> stage-aware preference -> stage-aware interaction for vision-language-action policies."""

__version__ = "0.1.0"
