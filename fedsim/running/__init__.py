"""A run from t = 0 to its folder: what is built, driven and observed."""
