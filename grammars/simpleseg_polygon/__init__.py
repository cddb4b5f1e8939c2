"""The polygon language: what a SimpleSeg model is asked, what it answers, and what that means."""
