"""Photographs -> instruction pairs: detector, segmenter, contours, description, quality gate."""
