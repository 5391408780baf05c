"""`hubctl demo`: the whole path, with real subprocesses, real data and a page to look at."""
