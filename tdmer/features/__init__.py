"""From recordings to sequences; what decodes, listens and looks is imported where it is used."""

from tdmer.features.acoustic import LogMel, OpenSmile
from tdmer.features.extractor import AudioPart, Extractor, TextPart, VideoPart
from tdmer.features.face import Face
from tdmer.features.folder import extract_folder
from tdmer.features.media import Media, audio_blocks, probe, video_frames
from tdmer.features.recording import Recording
from tdmer.features.speech import Whisper, Word
from tdmer.features.text import TextStates

__all__ = [
    "AudioPart",
    "Extractor",
    "Face",
    "LogMel",
    "Media",
    "OpenSmile",
    "Recording",
    "TextPart",
    "TextStates",
    "VideoPart",
    "Whisper",
    "Word",
    "audio_blocks",
    "extract_folder",
    "probe",
    "video_frames",
]
