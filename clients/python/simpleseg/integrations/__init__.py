"""Plug-ins for tools that call our client; each imports its tool when it is called."""
