"""Scenes to Stack: native-resolution windows, ranking, compositing, the lazy view."""
