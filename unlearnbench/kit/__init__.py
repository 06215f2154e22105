"""The plugin kit: write a method (`scaffold`) and see whether it keeps its promises (`conformance`)."""
