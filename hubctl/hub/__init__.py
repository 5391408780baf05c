"""Where adapters live: remotes, pushing, pulling, and the client of a Hub underneath."""
