"""`reflux dashboard`: a run in a browser, while it lives and after."""
