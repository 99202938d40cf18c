"""`reflux plan`: how many producers and scorers keep the learner busy, by simulating the product's own admission and batch rules."""
