"""Backup and restore of the store, and the export of its events."""
