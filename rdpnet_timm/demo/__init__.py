"""``rdpnet demo``: what a newcomer is shown, on data that is drawn or comes with scikit-learn."""
