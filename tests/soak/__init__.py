"""Many workers, many kills, hostile peers, for minutes: `make soak`."""
