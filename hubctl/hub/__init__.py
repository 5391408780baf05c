"""Where adapters live: remotes, pushing, pulling, and the one file that talks to a Hub."""
