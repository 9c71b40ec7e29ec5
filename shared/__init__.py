"""The language that all services speak. Imports no service."""
