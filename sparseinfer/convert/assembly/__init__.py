"""Builds the modules that replace layers, and adapts the modules that contain these layers."""
