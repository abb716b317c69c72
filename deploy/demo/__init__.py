"""The demo: a camera, a video, a folder or uploads, classified as they come, on a page or in a terminal."""
