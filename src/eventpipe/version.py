"""The version of the library, in a module of its own so that packaging can read it without importing the rest."""

VERSION = "0.1.0"
