"""The interface of unlearning methods: context, streams and loss terms."""
