"""Lua that Redis runs, each script in one step."""
