"""The largest eps that each training method can learn, from three initialisations."""
