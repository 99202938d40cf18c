"""`reflux report`: a run as one self-contained HTML file, from its record alone."""
