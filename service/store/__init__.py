"""The only room, beside backups, that speaks Redis: schema, records, and what is written and read in one step."""
