"""The backends that come with snt."""
