"""The web page that the server shows at ``/``: its files (``static/``) and what they need of us."""
