// Runs the reader of docs/how-to/android.md as a test tells it to: commands on standard input, the answer as JSON at its end.

import kotlin.concurrent.thread
import okhttp3.HttpUrl.Companion.toHttpUrl
import okhttp3.OkHttpClient
import org.json.JSONObject

fun main(arguments: Array<String>) {
    val (base, generation) = arguments
    var shown = 0
    val reader = GenerationReader(OkHttpClient(), base.toHttpUrl(), generation) { shown++ }
    var reading = thread { reader.read() }
    thread(isDaemon = true) {
        while (true) {
            when (readlnOrNull() ?: break) {
                "pause" -> {
                    reader.pause()
                    reading.join()
                    println("paused")
                }
                "resume" -> {
                    reader.resume()
                    reading = thread { reader.read() }
                }
                "hurry" -> reader.hurry()
            }
        }
    }
    while (reader.answer.ended == null) Thread.sleep(20)
    reading.join()
    val (text, cursor, ended, error) = reader.answer
    println(JSONObject(mapOf("text" to text, "cursor" to cursor, "ended" to ended, "error" to error, "shown" to shown)))
    System.exit(0)
}
