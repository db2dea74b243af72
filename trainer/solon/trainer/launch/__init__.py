"""Where services and training stages run: so far, as processes of this machine (``local``)."""
