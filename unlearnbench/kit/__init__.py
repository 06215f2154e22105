"""For plugin authors: templates, and conformance tests of a method."""
