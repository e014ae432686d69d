"""From ESO files and catalogues to the archive and its releases. CPU only, resumable, one direction."""
