"""The kit of a plugin's author: template, and conformance tests of a method."""
