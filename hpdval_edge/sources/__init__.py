"""Where pictures come from: files, folders, films, cameras and streams, all as a `FrameSource`."""
