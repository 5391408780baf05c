"""How this machine's own loopback is called: what goes there crosses no network, and no proxy reaches it."""

LOOPBACK = ("localhost", "127.0.0.1", "::1")
