"""HTTP server that turns an image and a phrase into polygons with a vision-language model."""
