"""What scripts/measure measures of people and programs: sessions, pushed speech, players."""
