"""Turns a claimed generation into log events."""
