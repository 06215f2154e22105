"""What an unlearning method sees: its context, streams and loss terms."""
