"""What composes everything: settings, start-up, the command line and the batch entry."""
